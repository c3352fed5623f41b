"""Runs functions as Deployments: from a bundle of files without any image build, or from images."""
