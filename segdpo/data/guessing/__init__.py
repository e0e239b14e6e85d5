"""What a folder as people have it holds: its files, how its masks store classes, and the options that read it."""
