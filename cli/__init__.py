"""The command line: one module per verb; `main.py` lists them."""
