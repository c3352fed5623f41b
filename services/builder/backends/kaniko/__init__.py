"""The backend that has images built by a Kaniko pod from a Dockerfile."""
