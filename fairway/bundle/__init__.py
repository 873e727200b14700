"""From modules for people to one file for a judge: `train_gpt.py` out of what a recipe needs.

modules (what a name refers to), parts (what settings leave out), shake (what is reached), wrap
(bytes), shorten (short names), flatten (one readable program), build (the files).
"""
