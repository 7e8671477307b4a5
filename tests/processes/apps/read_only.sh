# read_only.sh FOLDER COMMAND…: all but this folder is read-only, and the user has no name.
# In a mount namespace of its own (unshare --mount). The user may read everything, as root's
# interpreter has to be found, and write what its permissions allow.
set -e
folder=$1
shift
chown -R 54321:54321 "$folder"
mount --make-rprivate /
mount --bind "$folder" "$folder"
mount -o remount,bind,ro /
unset HOME USER LOGNAME XDG_STATE_HOME
exec setpriv --reuid 54321 --regid 54321 --clear-groups \
  --inh-caps +dac_read_search --ambient-caps +dac_read_search "$@"
