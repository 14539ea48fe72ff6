"""What is written about Trainhop, held against what it is."""
