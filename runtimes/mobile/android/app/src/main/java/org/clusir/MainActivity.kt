package org.clusir

import android.app.Activity
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.os.Bundle
import android.widget.Button
import android.widget.ImageView
import android.widget.LinearLayout
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.concurrent.thread

/**
 * One button: restores assets/photo.jpg and shows the result. With assets/model.tflite and model.json LiteRT runs the tiles, else
 * ONNX Runtime with assets/model.tile.ort and model.router.ort.
 */
class MainActivity : Activity() {
    private fun asset(name: String): ByteBuffer {
        val bytes = assets.open(name).use { it.readBytes() }
        return ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder()).apply { put(bytes).rewind() }
    }

    private fun <T> opened(use: (Clusir) -> T): T {
        if ("model.tflite" !in assets.list("").orEmpty()) {
            return Clusir(asset("model.tile.ort"), asset("model.router.ort")).use(use)
        }
        val description = assets.open("model.json").use { it.readBytes().decodeToString() }
        return LiteRtRunner(asset("model.tflite"), 4).use { runner -> Clusir(description, runner).use(use) }
    }

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val photo = assets.open("photo.jpg").use { BitmapFactory.decodeStream(it) }.copy(Bitmap.Config.ARGB_8888, true)
        val view = ImageView(this).apply { setImageBitmap(photo) }
        val button = Button(this).apply { text = "Restore" }
        button.setOnClickListener {
            button.isEnabled = false
            thread {
                val size = photo.width * photo.height * 4 // ARGB_8888 is stored as R, G, B, A
                val input = ByteBuffer.allocateDirect(size)
                val output = ByteBuffer.allocateDirect(size)
                photo.copyPixelsToBuffer(input)
                val text = try {
                    opened { model ->
                        model.restore(input, output, photo.width, photo.height, 4) { done, total ->
                            runOnUiThread { button.text = "tile $done of $total" }
                            true
                        }
                    }
                    photo.copyPixelsFromBuffer(output.apply { rewind() })
                    "Done"
                } catch (error: RuntimeException) {
                    error.message
                }
                runOnUiThread { view.setImageBitmap(photo); button.text = text }
            }
        }
        setContentView(LinearLayout(this).apply { orientation = LinearLayout.VERTICAL; addView(button); addView(view) })
    }
}
