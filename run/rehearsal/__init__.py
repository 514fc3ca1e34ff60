"""What `run/rehearse.py` is made of: generated graphs in OGB's formats, and language models with random weights."""
