"""Bundles: one file `train_gpt.py` made of the modules that a recipe needs.

modules (the definition of every name), parts (code that settings leave out), shake (reachable
code), wrap (packed bytes), shorten (short names), flatten (one readable program), build (files).
"""
