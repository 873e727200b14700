"""From modules for people to one file for a judge: `train_gpt.py` out of what a recipe needs.

trees (going through them), modules (what a name refers to), fold (what a recipe never does), shake
(what is reached), specialise (parameters that are constants), flatten (all of it), shorten (names),
emit (text), wrap (bytes), known (sizes of before), build (the files).
"""
