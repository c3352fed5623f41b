"""The deployer: owns functions, their events and their routes."""
