"""The drawings of summary.html: one function each, from a record to one `<svg>`.

They hold no colours: shapes carry classes, and the page's style sheet paints them, in the
light, in the dark and on paper.
"""
