"""The Job contract: all that the dispatcher and the trainer know of each other.

Both images carry this package and nothing else of each other. It has no torch, no client, no I/O.

    names.py     labels, annotations, finalizer, file names and mount paths
    request.py   the training request, as it travels in the pod-template annotation
    outcome.py   exit codes, failure codes, the termination message
    progress.py  the log line that carries live progress
    redaction.py URLs and secrets made fit for a log
    settings.py  settings that refuse a misspelt name
"""
