"""What a run is: for each stage one function on the driver and one on every worker."""
