"""The command `rookery`: one file a command, imported only when it is chosen.

Text goes to stdout and everything else to stderr. A user's mistake is one line and exit code 2; `--debug` shows the
traceback. Ctrl-C ends with code 130. A closed pipe on stdout ends quietly with code 0: the reader has had enough.
"""
