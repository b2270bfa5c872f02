nothing to see here
