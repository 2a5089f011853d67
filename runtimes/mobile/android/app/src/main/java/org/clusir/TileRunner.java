package org.clusir;

import java.nio.ByteBuffer;

/**
 * Runs one tile in another runtime. Both buffers are direct, hold float32 in the machine's order of bytes and 0..1, and are
 * valid during the call only. Called on the thread that called restore, one tile at a time; an exception stops the run.
 */
public interface TileRunner {
    void run(ByteBuffer in, ByteBuffer out);
}
