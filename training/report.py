"""The former name of report.html_report: `python -m training.report` keeps working."""
import runpy

if __name__ == '__main__':
    runpy.run_module('report.html_report', run_name='__main__', alter_sys=True)
