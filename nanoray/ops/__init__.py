"""What is done around the stages: fetching data, and all that a run needs before and after."""
