"""The command line: a file a verb, without logic. ``main`` runs it; ``process`` sets what is process-wide."""

from polypseg.cli.main import main as main
