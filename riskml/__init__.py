"""riskml: volatility and liquidation risk of perpetual futures, from Parquet to ONNX."""

__version__ = "0.5.0"
