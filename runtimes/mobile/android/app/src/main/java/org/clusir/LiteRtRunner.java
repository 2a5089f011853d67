package org.clusir;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import org.tensorflow.lite.Interpreter;

/**
 * Tiles in LiteRT: model.tflite (or model_fp16.tflite, model_int8.tflite) of clusir-export --target litert, whose channels
 * come last. The bytes are a direct buffer and must stay; close it after the model that uses it.
 */
public final class LiteRtRunner implements TileRunner, AutoCloseable {
    private final Interpreter interpreter;

    public LiteRtRunner(ByteBuffer model, int threads) {
        interpreter = new Interpreter(model, new Interpreter.Options().setNumThreads(threads));
    }

    @Override
    public void run(ByteBuffer in, ByteBuffer out) {
        interpreter.run(in.order(ByteOrder.nativeOrder()), out.order(ByteOrder.nativeOrder()));
    }

    @Override
    public void close() {
        interpreter.close();
    }
}
