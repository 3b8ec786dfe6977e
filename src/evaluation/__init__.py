"""Running a benchmark: settings, processes, and results on disk that survive being killed."""
