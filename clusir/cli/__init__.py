"""The commands, one file each; ``main`` lists them. Files that begin with ``_`` are shared by commands.

Belongs here: options, what is printed, exit codes. Not here: work that a program would want to call (the rooms below).
Whatever is heavy is imported inside the command, so that ``--help`` stays cheap.
"""
