"""This floor runs jobs (a class, a seed and a backbone each), here or on workers, records their results, and shows and
uses what they leave. Its commands are run.run, report.report, predict.predict and export.export, imported when given.
"""
