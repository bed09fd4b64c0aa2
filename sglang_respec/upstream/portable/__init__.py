"""SGLang on a machine with no GPU: platform, attention and index functions in PyTorch."""
