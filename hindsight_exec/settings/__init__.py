"""The configuration file, `.env` and the environment become :class:`~.config.Settings`."""
