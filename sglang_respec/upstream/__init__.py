"""The only package that imports SGLang: hooks, worker, portable platform."""
