"""The service: one model behind HTTP, on the hospital's own computer.

From the outside in: ``run`` starts and stops it, ``observe`` counts and logs, ``guard`` looks at every request before
its body is read, ``app`` contains the routes, ``uploads`` reads what was sent, ``engine`` computes frames of many
requests together, ``jobs`` works through videos and batches, ``annotations`` keeps what people made of frames,
``corrections`` the folder of corrected masks, ``people`` knows whose a token is. The page is in ``page/``.
"""
