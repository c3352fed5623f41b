"""How functions run: one interface (`base`), one folder a driver."""
