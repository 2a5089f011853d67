package org.clusir

import java.io.Closeable
import java.nio.ByteBuffer

/** Returns false to stop the run; called on the thread that called [Clusir.restore]. */
fun interface Progress {
    fun onProgress(done: Int, total: Int): Boolean
}

/** An opened model. Safe to use from any number of threads; close it when none uses it any more. */
class Clusir private constructor(private var handle: Long) : Closeable {
    /** ONNX Runtime: direct buffers with NAME.tile.ort and NAME.router.ort, which are not needed after this. */
    constructor(graph: ByteBuffer, router: ByteBuffer?, threads: Int = 0) : this(open(graph, router, null, threads))

    /** Another runtime, such as [LiteRtRunner]: [description] is the text of model.json, which lies beside its model. */
    constructor(description: String, runner: TileRunner, channelsLast: Boolean = true) :
        this(openRunner(description, runner, channelsLast))

    /**
     * Restores [input] (direct, width x height x channels bytes: RGB, or RGB + alpha that is kept) into [output]. Returns the
     * cluster posterior of all levels. Throws IllegalArgumentException, CancellationException or RuntimeException with one line.
     */
    fun restore(input: ByteBuffer, output: ByteBuffer, width: Int, height: Int, channels: Int, progress: Progress? = null): FloatArray {
        check(handle != 0L) { "this model is closed" }
        return restore(handle, input, output, width, height, channels, progress)
    }

    fun label(level: Int, cluster: Int): String = label(handle, level, cluster)

    override fun close() {
        close(handle)
        handle = 0L
    }

    private companion object {
        init {
            System.loadLibrary("clusir_jni")
        }

        @JvmStatic external fun open(graph: ByteBuffer, router: ByteBuffer?, library: String?, threads: Int): Long
        @JvmStatic external fun openRunner(description: String, runner: TileRunner, channelsLast: Boolean): Long
        @JvmStatic external fun close(handle: Long)
        @JvmStatic external fun restore(
            handle: Long, input: ByteBuffer, output: ByteBuffer, width: Int, height: Int, channels: Int, progress: Progress?,
        ): FloatArray
        @JvmStatic external fun label(handle: Long, level: Int, cluster: Int): String
    }
}
