"""NPU operators: `dispatch` calls them by torch_npu's names, `reference` says what they mean,
`contracts` what they take.

torch_npu's operators and MindSpeed's are imported in `dispatch` and nowhere else.
"""
