"""Numbers of the process: what is counted, under which names, and how it is written.

``histogram`` counts where things happen; ``catalogue`` names every metric; a ``Reading`` has the values of
one moment, ``exposition`` writes it. Nothing here is global: a process may have many applications.
"""
