"""What a token is: seeds and noise. Torch only."""
