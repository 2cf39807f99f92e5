"""The former name of report.modelzoo: `python -m training.modelzoo` keeps working."""
import runpy

if __name__ == '__main__':
    runpy.run_module('report.modelzoo', run_name='__main__', alter_sys=True)
