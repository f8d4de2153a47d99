"""What each experiment computes, where its files go, and the command line."""
