"""What is submitted: each job parses a command line, calls one verb, and says where the result is."""
