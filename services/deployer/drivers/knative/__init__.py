"""Runs functions as Knative Services, from images; Knative scales them to zero and back."""
