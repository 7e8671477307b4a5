"""Process models as people run them: what becomes of the turns that such processes give."""
