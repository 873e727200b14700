"""Bundles: one file `train_gpt.py` made of the modules that a recipe needs.

modules (what a name refers to), parts (what settings leave out), shake (what is reached), wrap
(bytes), shorten (short names), flatten (one readable program), build (the files).
"""
