"""Annotating: frames in projects, what people made of them in versions, and a model fine-tuned on that.

``labels`` reads the file of classes and attributes, ``regions`` says which region of a mask is what polyp, ``database``
is the table, ``store`` keeps frames and versions, ``listing`` filters and orders them, ``imports`` and ``exports`` take
data sets in and give them out, ``work`` does in the background what takes long, ``training`` fine-tunes, ``routes``
contains the routes.
"""
