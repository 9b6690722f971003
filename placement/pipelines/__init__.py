"""Running a pipeline: a model that was cut into stages, trained by PyTorch's own schedules, a process for each rank."""
