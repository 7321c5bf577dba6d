"""The Ray side: the cluster of a job, and groups of workers on it that heal themselves."""
