"""Parts of `run/rehearse.py`: generated graphs in OGB's formats, and language models with random weights."""
