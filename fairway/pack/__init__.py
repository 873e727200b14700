"""From integers to a file: entropy coding and the artifact container."""
