"""What a placement is turned into for another program or runtime: one file for each."""
