"""Measure this server beside a stock one."""
