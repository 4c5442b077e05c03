"""The networks that ``riskml.learning`` fits and exports."""
