package org.tensorflow.lite;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;

/**
 * In the place of LiteRT's class, with those of its functions that the sample calls. Its "model" is the side and three gains as
 * float32: each pixel becomes the mean of itself and its neighbour to the right (0 beyond the tile), times its channel's gain.
 */
public final class Interpreter implements AutoCloseable {
    public static final class Options {
        public Options setNumThreads(int threads) {
            return this;
        }
    }

    private final FloatBuffer numbers;

    public Interpreter(ByteBuffer model, Options options) {
        if (!model.isDirect()) throw new IllegalArgumentException("the model is no direct buffer");
        numbers = model.order(ByteOrder.nativeOrder()).asFloatBuffer();
    }

    public void run(Object input, Object output) {
        ByteBuffer given = (ByteBuffer) input, answer = (ByteBuffer) output;
        int side = (int) numbers.get(0);
        if (!given.isDirect() || given.order() != ByteOrder.nativeOrder() || given.remaining() != side * side * 12
                || answer.remaining() != given.remaining()) throw new IllegalArgumentException("other buffers than LiteRT takes");
        FloatBuffer in = given.asFloatBuffer(), out = answer.order(ByteOrder.nativeOrder()).asFloatBuffer();
        for (int y = 0; y < side; ++y) {
            for (int x = 0; x < side; ++x) {
                for (int c = 0; c < 3; ++c) {
                    float right = x + 1 < side ? in.get((y * side + x + 1) * 3 + c) : 0;
                    out.put((y * side + x) * 3 + c, numbers.get(1 + c) * (in.get((y * side + x) * 3 + c) + right) / 2);
                }
            }
        }
    }

    @Override
    public void close() {}
}
