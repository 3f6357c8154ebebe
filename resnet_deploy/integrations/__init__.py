"""Other libraries' own types in and out, for those who work with one library throughout; one file for each."""
