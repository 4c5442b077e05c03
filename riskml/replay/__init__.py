"""Replay: would an engine's requirement have caught the accounts that were liquidated?"""
