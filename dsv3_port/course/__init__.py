"""What a notebook is made of: session, exercises and their judge, source shown, tutorial runner, pages, slides."""
