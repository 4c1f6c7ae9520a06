"""What predicts the mean: experts, each fitted without every fold in turn, and how much of each to believe.

A model is a stack of them and a generative residual on top; a baseline is one of them behind a check of arrays. Nothing
here knows AnnData or pandas. Files are imported one by one: some need torch, some only numpy.
"""
